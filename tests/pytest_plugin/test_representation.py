"""Representation items, dropped tokens and claims, as pytest runs them."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest

from mae_bench.claims import findings, to_csv
from mae_bench.contrasts import CONTRASTS, Measured
from mae_bench.evidence import Evidence
from mae_bench.indicators.profile import column
from mae_bench.outcomes import Outcomes
from tests.conftest import Project

FIRST = ("--mae-full", "--mae-update-baseline", "--mae-reason", "a test", "--mae-run", "first")
CONFTEST = '''
@model_fixture(arm="mae_ft", training_seed=0)
def vit():
    """A tiny ViT."""
    from networks import tiny

    return tiny(3)


@model_fixture(head=False, arm="mae_pretrained", training_seed=0)
def encoder():
    """Its encoder."""
    from networks import tiny

    return tiny(0)


@model_fixture
def stages():
    """A tiny CNN."""
    from networks import cnn

    return cnn()
'''
NETWORKS = """
from pathlib import Path

import torch
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer

from mae_bench import Classifier

HERE = Path(__file__).parent


def wrapped(network):
    def count(_, args, __):
        if (args[0][0] > -2).any():  # none of the suite's images is black, but the first that tries a model out
            with (HERE / "log.txt").open("a") as log:
                log.write(f"{len(args[0])}\\n")

    network.register_forward_hook(count)
    classifier = network.get_classifier()
    if isinstance(classifier, torch.nn.Linear):
        classifier.bias.data += 1.0  # as if it had been trained
    return Classifier(network, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 16, 16), crop_pct=1.0)


def tiny(classes):
    torch.manual_seed(0)
    return wrapped(
        VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=classes)
    )


def cnn():
    torch.manual_seed(0)
    return wrapped(ResNet(BasicBlock, (1, 1, 1, 1), num_classes=3, channels=(8, 8, 8, 8)))
"""
REPRESENTATION = """
import pytest


@pytest.mark.representation
def test_representation(representation):
    representation.check()
"""


@pytest.fixture
def small(project: Project) -> Project:
    project.conftest(CONFTEST)
    project.write("networks.py", NETWORKS)
    project.images(per_class=12)
    project.write("pytest.ini", "[pytest]\nmae_suite = imagefolder\nmae_data = data\n")
    return project


def test_encoders_join_representation_items_and_no_others(small: Project) -> None:
    small.write("test_representation.py", REPRESENTATION)
    small.test("clean", "token_drop")
    result = small.run("--co", "-q")
    text = "\n".join(result.outlines)
    assert "test_representation[encoder-clean-0.00]" in text
    assert "test_cell[encoder" not in text
    for model in ("vit", "stages"):
        assert f"test_cell[{model}-token_drop-0.90]" in text
        assert f"test_representation[{model}-token_drop-0.50]" in text
    assert "test_representation[vit-token_drop-0.10]" not in text
    assert "test_representation[vit-token_drop-0.10]" in "\n".join(small.run("--co", "-q", "--mae-full").outlines)


def test_cells_a_model_cannot_have_are_skipped_with_the_reason_and_written(small: Project) -> None:
    small.write("test_representation.py", REPRESENTATION)
    small.test("token_drop")
    result = small.run("-k", "token_drop", "-rs", "--mae-run", "run")
    # three levels of each classifier, two representations of each model
    result.assert_outcomes(passed=3 + 2 + 2, skipped=3 + 2)
    result.stdout.fnmatch_lines(["*not applicable: a convolutional network has no tokens*"])
    rows = small.rows()
    assert {rows[f"stages-token_drop-{level}"]["status"] for level in ("0.10", "0.50", "0.90")} == {"not_applicable"}
    assert {rows[f"vit-token_drop-{level}"]["status"] for level in ("0.10", "0.50", "0.90")} == {"ok"}
    assert "partial" not in "\n".join(result.outlines)


def records(project: Project, run: str) -> dict[str, list[dict[str, Any]]]:
    files = (project.path / run / "representations").glob("*/*.json")
    return {f"{f.parent.name}-{f.stem}": json.loads(f.read_text())["records"] for f in files}


@pytest.mark.parametrize("first", ["test_a.py", "test_z.py"])
def test_one_forward_pass_feeds_a_cell_and_its_representation(small: Project, first: str) -> None:
    """Whichever of the two comes first."""
    small.write("test_m.py", REPRESENTATION)
    small.test("occlusion", name=first)
    picked = ("vit-random_patch-0.50", "vit-random_patch-0.90")
    ids = [
        f"{file}::{test}[{cell}]"
        for cell in picked
        for file, test in ((first, "test_cell"), ("test_m.py", "test_representation"))
    ]
    small.run(*sorted(ids), "--mae-run", "both").assert_outcomes(passed=4)
    assert sum(map(int, small.log)) == 3 * 36  # clean and two degraded passes of all images
    small.run(*(i for i in ids if "test_m.py" in i), "--mae-run", "alone").assert_outcomes(passed=2)
    assert records(small, "both") == records(small, "alone")
    assert set(records(small, "both")) == set(picked)


def test_representations_are_merged_and_resumed(small: Project) -> None:
    small.write("test_representation.py", REPRESENTATION)
    small.run("-k", "encoder and clean", "--mae-run", "run").assert_outcomes(passed=1)
    frame = pd.read_parquet(small.path / "run" / "representations.parquet")
    assert set(frame["cell"]) == {"encoder-clean-0.00"}
    assert {"separability_excess", "attention_distance"} <= set(frame["indicator"])
    before = len(small.log)
    small.run("-k", "encoder and clean", "--mae-run", "run", "--mae-resume").assert_outcomes(passed=1)
    assert len(small.log) == before
    model = json.loads((small.path / "run" / "models" / "encoder.json").read_text())
    assert (model["arm"], model["training_seed"], model["head"]) == ("mae_pretrained", 0, False)


def test_clean_representation_without_replicates_is_made_again_where_they_are_wanted(small: Project) -> None:
    small.write("test_representation.py", REPRESENTATION)
    path = small.path / "run" / "representations" / "encoder" / "clean-0.00.json"
    seen = []
    for more in ((), ("--mae-full",), ("--mae-full",), ()):
        before = len(small.log)
        small.run("-k", "encoder and clean", "--mae-run", "run", "--mae-resume", *more).assert_outcomes(passed=1)
        seen.append((len(small.log) > before, bool(json.loads(path.read_text())["replicates"])))
    assert seen == [(True, False), (True, True), (False, True), (False, True)]


def test_too_few_images_for_subspaces_fail_with_the_remedy(project: Project) -> None:
    project.conftest(CONFTEST)
    project.write("networks.py", NETWORKS)
    project.images(per_class=4)
    project.write("pytest.ini", "[pytest]\nmae_suite = imagefolder\nmae_data = data\n")
    project.write("test_representation.py", REPRESENTATION)
    result = project.run("-k", "vit and clean")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the smallest class has 2 fitting images*add images*"])


# --------------------------------------------------------------------------- claims

CLAIM = "def test_claim(claim):\n    claim.check()\n"


def test_without_evidence_there_is_one_claim_and_it_says_how(small: Project) -> None:
    small.write("test_claims.py", CLAIM)
    result = small.run("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*holds no evidence.npz*mae-bench claims*"])


@pytest.fixture
def decided(small: Project) -> Project:
    """A committed baseline with evidence and claims."""
    small.test("clean", "token_drop")
    small.write("test_claims.py", CLAIM)
    small.run("test_x.py", *FIRST).assert_outcomes(passed=7, skipped=5)
    folder = small.path / "results" / "imagefolder"
    from mae_bench.store import RunDirectory

    evidence = Evidence.of("imagefolder", [RunDirectory(small.path / "first")])
    (folder / "evidence.npz").write_bytes(evidence.to_bytes())
    found = findings(Measured(Outcomes.load(folder / "outcomes.npz"), evidence))
    (folder / "claims.csv").write_text(to_csv(found))
    return small


def test_every_contrast_is_a_test_behind_the_cells(decided: Project) -> None:
    result = decided.run("--mae-run", "again")
    result.assert_outcomes(passed=5 + len(CONTRASTS), skipped=3)
    order = [line for line in decided.run("--co", "-q").outlines if "::" in line]
    claims = [i for i, line in enumerate(order) if "test_claim[" in line]
    assert claims == list(range(len(order) - len(CONTRASTS), len(order)))


def test_verdict_that_changed_fails_with_both(decided: Project) -> None:
    table = decided.path / "results" / "imagefolder" / "claims.csv"
    lines = table.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("raw-token_drop,"))
    lines[at] = lines[at].replace("not measured", "holds")
    table.write_text("\n".join(lines) + "\n")
    result = decided.run("test_claims.py")
    result.assert_outcomes(passed=len(CONTRASTS) - 1, failed=1)
    result.stdout.fnmatch_lines(
        ["*raw-token_drop: committed is 'holds', outcomes and evidence now say 'not measured'*"]
    )


def test_missing_table_is_named(decided: Project) -> None:
    (decided.path / "results" / "imagefolder" / "claims.csv").unlink()
    result = decided.run("test_claims.py", "-k", "raw-stripes")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*evidence.npz needs cells.csv, outcomes.npz and claims.csv beside it*"])


@pytest.mark.parametrize("workers", [(), pytest.param(("-n", "2"), marks=pytest.mark.thorough)])
def test_cell_off_its_committed_interval_fails_the_claims_about_it(decided: Project, workers: tuple[str, ...]) -> None:
    table = decided.path / "results" / "imagefolder" / "cells.csv"
    table.with_name("history.csv").unlink()  # which knows what the table was
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    mine = (frame["model"] == "vit") & (frame["condition"] == "token_drop-0.50")
    frame.loc[mine, ["top1_low", "top1_high"]] = ["0.995", "0.999"]
    frame.to_csv(table, index=False)
    asked = ("-k", "vit-token_drop-0.50 or raw-token_drop or raw-stripes", "--mae-run", "again")
    result = decided.run(*asked, *workers)
    assert result.ret == 1
    if not workers:  # a worker may decide a claim before another has evaluated its cells; the end of the run sees to it
        result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*vit-token_drop-0.50: top-1 * is off the committed interval 0.9950 to 0.9990*"])


def test_layer_off_its_committed_interval_fails_the_claims_about_it(small: Project) -> None:
    small.test("clean")
    small.write("test_representation.py", REPRESENTATION)
    small.write("test_claims.py", CLAIM)
    small.run("test_x.py", *FIRST).assert_outcomes(passed=2)
    small.run("test_representation.py", "-k", "encoder and clean", "--mae-run", "layers").assert_outcomes(passed=1)
    folder = small.path / "results" / "imagefolder"
    from mae_bench.store import RunDirectory

    evidence = Evidence.of("imagefolder", [RunDirectory(small.path / name) for name in ("first", "layers")])
    named = evidence.values["encoder"]["clean-0.00"]
    asked = ("-k", "encoder-clean or early-mae_pretrained or early_entropy-mae_pretrained or slope-subspace_accuracy")
    for shift, failed in ((0.0, 0), (0.9, 1)):
        name = column("attention_distance_ratio", 1, "patch")
        value, low, high = named[name]
        named[name] = (value, low + shift, high + shift)
        (folder / "evidence.npz").write_bytes(evidence.to_bytes())
        found = findings(Measured(Outcomes.load(folder / "outcomes.npz"), evidence))
        (folder / "claims.csv").write_text(to_csv(found))
        result = small.run(*asked, "--mae-run", f"again{failed}")
        assert result.parseoutcomes().get("failed", 0) == failed
    result.stdout.fnmatch_lines(
        ["*encoder-clean-0.00: attention_distance_ratio of patch at layer 1 is * off the committed interval *"]
    )
