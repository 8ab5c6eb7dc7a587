"""Names of files that are made from names of models and cells, whatever characters these hold."""

from __future__ import annotations

import hashlib
import re

LONGEST = 100
"""Characters up to which a name stays as it is: a suffix and a temporary name have room beside it on any disk."""
_EVERYDAY = re.compile(r"[a-z0-9_][a-z0-9_.-]*")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


def file_name(name: str) -> str:
    """A file's name that stands for ``name`` alone, on disks that tell upper from lower case and on those that do not.

    Everyday names (``[a-z0-9_.-]``, at most :data:`LONGEST` characters, nothing that a shell or Windows takes for
    something else) stay as they are. Others become what is readable of them, a ``~``, which no everyday name holds, and
    64 bits of their SHA-256. The result is free of separators, so that it never leaves its folder.

    >>> file_name("mae_ft_s0"), file_name("ViT-B/16"), file_name("../x"), file_name("con")
    ('mae_ft_s0', 'vit_b_16~28416be7ec54a803', 'x~d6b96a97d147daaa', 'con~1143da2bc54c495c')
    """
    everyday = _EVERYDAY.fullmatch(name) and not name.endswith(".") and not _RESERVED.fullmatch(name)
    if everyday and len(name) <= LONGEST:
        return name
    readable = re.sub(r"[^a-z0-9]+", "_", name.lower())[:60].strip("_")
    # what cannot be encoded may still be a name, and has to be told from others
    return f"{readable}~{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:16]}"
