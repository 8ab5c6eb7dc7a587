"""Results as others keep theirs: what is written is read back, and says what the rows say."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mae_bench.cli import app
from mae_bench.export import ExportError, board_of, latex, model_index, timm_csv
from mae_bench.labelled_images import LabelledImages, first_copies
from mae_bench.leaderboard import Leaderboard, default_conditions
from mae_bench.markup import csv_value, terminal_text
from mae_bench.rows import CellResult
from mae_bench.side import Side
from mae_bench.store import RunDirectory
from mae_bench.suites import SUITES
from references.runs import Sessions

LAW = settings(max_examples=20, derandomize=True)
MakeResult = Callable[..., CellResult]
IMAGES = 50
CLASSES = [f"class {k}" for k in range(10)]
BLUR = sorted(default_conditions("blur", SUITES["fashion_mnist"]))
TOKENS = sorted(default_conditions("token_drop", SUITES["fashion_mnist"]))
CONDITIONS = ("clean-0.00", *BLUR, *TOKENS)
VIEW = "256x256 bilinear center 0.875, then 224x224 bicubic center 0.9"
HOSTILE = "=a_b%&$#{}~^\\x|<script>\u202e"


def images_of(count: int = IMAGES) -> LabelledImages:
    ids = [f"{k:032x}-0" for k in range(count)]
    return LabelledImages(ids, np.arange(count) % 10, CLASSES, first_copies(ids))


def side_of(cell_result: MakeResult, models: Sequence[str] = ("weak", "strong", "middle"), **changes: Any) -> Side:
    """Models of some strength under blur, and with tokens taken away."""
    images, generator, results = images_of(), np.random.default_rng(0), []
    share = {"weak": 0.5, "middle": 0.6, "strong": 0.8}
    for rank, model in enumerate(models):
        for condition in CONDITIONS:
            hit = generator.random(IMAGES) < share.get(model, 0.7)
            prediction = np.where(hit, images.labels, (images.labels + 1) % 10)
            more: dict[str, Any] = {"view": VIEW, "parameters": 86_567_656 * (rank + 1), "top5": None}
            if condition == "clean-0.00":
                more |= {"top5": 0.98, "top5_low": 0.97, "top5_high": 0.99}
            results.append(cell_result(f"{model}-{condition}", prediction, images.labels, **more | changes))
    return Side.of("run", results, images)


@pytest.fixture
def board(cell_result: MakeResult) -> Leaderboard:
    return board_of(side_of(cell_result))


def lines_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


# --------------------------------------------------------------------------- timm


def test_timm_reads_its_columns_and_the_rows_are_behind_them(board: Leaderboard) -> None:
    lines = lines_of(timm_csv(board))
    rows = {row.model: row for row in board.rows if row.family == "clean"}
    assert list(lines[0]) == [
        "model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation",
        "blur_top1", "token_drop_top1",
    ]  # fmt: skip
    assert [line["model"] for line in lines] == sorted(rows, key=lambda model: -(rows[model].top1 or 0))
    for line in lines:
        row = rows[line["model"]]
        assert float(line["top1"]) == pytest.approx(100 * (row.top1 or 0), abs=5e-4)
        assert float(line["top1"]) + float(line["top1_err"]) == pytest.approx(100)
        assert (line["top5"], line["top5_err"]) == ("98.000", "2.000")
        assert line["param_count"] == f"{row.parameters / 1e6:.2f}"
        assert (line["img_size"], line["crop_pct"], line["interpolation"]) == ("224", "0.900", "bicubic")
        blurred = [r.top1 or 0.0 for r in board.rows if (r.model, r.family) == (row.model, "blur")]
        assert float(line["blur_top1"]) == pytest.approx(100 * sum(blurred) / len(BLUR), abs=5e-4)


def test_under_a_condition_differences_from_clean_are_behind(board: Leaderboard) -> None:
    clean = lines_of(timm_csv(board))
    lines = lines_of(timm_csv(board, condition="token_drop-0.50"))
    assert list(lines[0])[-3:] == ["top1_diff", "top5_diff", "rank_diff"]
    order = [line["model"] for line in clean]
    for rank, line in enumerate(lines):
        before = clean[order.index(line["model"])]
        assert float(line["top1_diff"]) == pytest.approx(float(line["top1"]) - float(before["top1"]), abs=2e-3)
        assert line["top1_diff"][0] in "+-"
        assert (line["top5"], line["top5_diff"]) == ("", "")
        assert int(line["rank_diff"]) == order.index(line["model"]) - rank
    assert sorted(line["model"] for line in lines) == sorted(order)
    some = lines_of(timm_csv(board, ["weak"], "token_drop-0.50"))
    assert some == [line for line in lines if line["model"] == "weak"]


def test_a_view_that_is_not_square_says_both_sides(cell_result: MakeResult) -> None:
    board = board_of(side_of(cell_result, ("vit",), view="224x256 bicubic center 1.0"))
    assert lines_of(timm_csv(board))[0]["img_size"] == "224x256"
    with pytest.raises(ExportError, match="'' is no view, so the image size is not known; run the cell again"):
        timm_csv(board_of(side_of(cell_result, ("vit",), view="")))


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("token_drop-0.51", "did you mean token_drop-0.50"),
        ("tokendrop-0.50", "did you mean token_drop"),
        ("token_drop", "no cell is of it; "),
    ],
)
def test_a_condition_that_no_cell_has_is_refused(board: Leaderboard, condition: str, words: str) -> None:
    with pytest.raises(ExportError, match=f"--condition {condition}: .*{words}"):
        timm_csv(board, condition=condition)


# --------------------------------------------------------------------------- Hugging Face


def card_of(text: str) -> ModelCard:
    """The card whose metadata ``text`` is, as the Hub reads it."""
    return ModelCard(f"---\n{text}---\n# A model\n")


def test_the_hub_reads_what_the_rows_say(board: Leaderboard) -> None:
    card = card_of(model_index(board, ["strong"]))
    assert card.data.model_name == "strong"
    found = {(result.dataset_config, result.metric_name): result for result in card.data.eval_results or ()}
    (standing,) = (one for one in board.standings if one.model == "strong")
    assert set(found) == {
        ("clean", "top-1"), ("clean", "top-5"), ("blur", "mean top-1"), ("token_drop", "mean top-1"),
        ("score", "mean top-1 of families"),
    }  # fmt: skip
    assert {result.task_type for result in found.values()} == {"image-classification"}
    assert {result.dataset_type for result in found.values()} == {"fashion_mnist"}
    assert {(result.dataset_args or {})["images"] for result in found.values()} == {IMAGES}
    clean, score = found["clean", "top-1"], found["score", "mean top-1 of families"]
    assert clean.metric_value == pytest.approx(standing.clean[0])
    assert clean.metric_args == pytest.approx({"low": standing.clean[1], "high": standing.clean[2]})
    assert found["clean", "top-5"].metric_value == 0.98
    assert found["blur", "mean top-1"].metric_value == pytest.approx(standing.robust["blur"])
    assert found["blur", "mean top-1"].dataset_args == {"images": IMAGES, "cells": len(BLUR)}
    assert score.metric_value == pytest.approx(standing.score)
    assert standing.score_interval is not None
    assert score.metric_args == pytest.approx(
        dict(zip(("low", "high"), standing.score_interval, strict=True)), abs=1e-6
    )
    assert (score.dataset_args or {})["families"] == "blur"


def test_a_mean_counts_the_cells_that_it_is_of_and_a_partial_family_has_none_in_the_csv(
    cell_result: MakeResult,
) -> None:
    """The mean runs over conditions that all complete models have, however many more a model has."""
    extra, images = "gaussian_blur-9.00", images_of()
    generator = np.random.default_rng(5)

    def predicted() -> np.ndarray:
        return np.where(generator.random(IMAGES) < 0.6, images.labels, (images.labels + 1) % 10)

    conditions = {
        "full": (*CONDITIONS, extra),
        "default": CONDITIONS,
        "partial": ("clean-0.00", BLUR[0], extra, *TOKENS),
    }
    results = [
        cell_result(f"{model}-{condition}", predicted(), images.labels, view=VIEW)
        for model, mine in conditions.items()
        for condition in mine
    ]
    board = board_of(Side.of("run", results, images))
    rows = {(row.model, row.condition): row.top1 or 0.0 for row in board.rows}
    for model, averaged in (("full", BLUR), ("default", BLUR), ("partial", BLUR[:1])):
        card = card_of(model_index(board, [model]))
        (blur,) = (one for one in card.data.eval_results or () if one.dataset_config == "blur")
        assert (blur.dataset_args or {})["cells"] == len(averaged)
        mean = sum(rows[model, condition] for condition in averaged) / len(averaged)
        assert blur.metric_value == pytest.approx(mean, abs=1e-6)
    lines = {line["model"]: line["blur_top1"] for line in lines_of(timm_csv(board))}
    assert {model for model, text in lines.items() if not text} == {"partial"}


def test_a_card_is_of_one_model(board: Leaderboard, cell_result: MakeResult) -> None:
    for models in ((), ("weak", "strong")):
        with pytest.raises(ExportError, match="a model card is of one model: choose one of strong, middle, weak with"):
            model_index(board, models)
    assert card_of(model_index(board_of(side_of(cell_result, ("vit",))))).data.model_name == "vit"


# --------------------------------------------------------------------------- LaTeX

SPECIAL = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
WORDS = {"~": r"\textasciitilde ", "^": r"\textasciicircum ", "\\": r"\textbackslash "}


def plain(text: str) -> str:
    """The text that LaTeX sets for ``text``."""
    for character, written in (WORDS | SPECIAL).items():
        text = text.replace(written, f"\0{ord(character)}\0")
    assert not re.search(r"[&%$#_{}~^\\]", text), text
    return re.sub("\0([0-9]+)\0", lambda code: chr(int(code[1])), text)


def table_of(text: str) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of LaTeX ``text``, whose parts are in their places."""
    lines = text.splitlines()
    assert lines[:3] == [r"% \usepackage{booktabs}", r"\begin{table}", r"\centering"]
    assert [line for line in lines if line.startswith("\\") and "rule" in line] == [
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
    ]
    assert lines[-2:] == [r"\end{tabular}", r"\end{table}"]
    top, middle, bottom = (lines.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert middle == top + 2
    rows = []
    for line in (lines[top + 1], *lines[middle + 1 : bottom]):
        assert line.endswith(r" \\")
        rows.append([plain(cell) for cell in re.split(r"(?<!\\) ?& ", line.removesuffix(r" \\"))])
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert columns is not None
    assert {len(row) for row in rows} == {len(columns[1])}
    return rows[0], rows[1:]


def test_latex_shows_the_leaderboard(board: Leaderboard) -> None:
    header, lines = table_of(latex(board))
    assert header == ["#", "model", "score (%)", "clean (%)", "blur (%)", "token_drop (%)"]
    kept = [board.header.index(name) for name in header]
    assert lines == [[line[k] for k in kept] for line in board.cells()]
    assert r"\caption{Top-1 in percent, with 95~\% intervals. fashion\_mnist: all 50 images" in latex(board)
    assert [line[1] for line in table_of(latex(board, ["weak", "middle"]))[1]] == ["middle", "weak"]


@LAW
@given(st.text(st.sampled_from("ab_&%$#{}~^\\<>|=@+-'\" é☃\n\x1b"), min_size=1, max_size=12))
def test_any_name_comes_back_from_every_format(cell_result: MakeResult, name: str) -> None:
    board = board_of(side_of(cell_result, (name,)))
    assert csv_value(lines_of(timm_csv(board))[0]["model"]) == name
    assert card_of(model_index(board)).data.model_name == name
    ((_, model, *_),) = table_of(latex(board))[1]
    assert " ".join(model.split()) == " ".join(terminal_text(name).split())


# --------------------------------------------------------------------------- refusals


def test_a_model_that_is_not_there_is_refused_everywhere(board: Leaderboard) -> None:
    for write in (timm_csv, model_index, latex):
        with pytest.raises(ExportError, match="--model stron: it is not among the results; did you mean strong"):
            write(board, ["stron"])


def test_without_a_clean_cell_there_is_nothing_to_export(cell_result: MakeResult) -> None:
    images = images_of()
    side = Side.of("run", [cell_result("vit-token_drop-0.50", images.labels, images.labels)], images)
    with pytest.raises(ExportError, match="run: no clean cell is finished"):
        board_of(side)


# --------------------------------------------------------------------------- whole commands


@pytest.fixture
def tree(cell_result: MakeResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a run and committed results that one is in."""
    person = {f"GIT_{who}_{what}": f"{who}@{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    quiet = {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CEILING_DIRECTORIES": str(tmp_path.parent),
    }
    for name, value in (person | quiet).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CI", raising=False)
    subprocess.run(["git", "-C", tmp_path, "init", "--quiet"], check=True)
    Sessions(cell_result).commit(tmp_path / "results" / "fashion_mnist", ["vit-clean-0.00", "cnn-clean-0.00"])
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    subprocess.run(["git", "-C", tmp_path, "commit", "--quiet", "-m", "results"], check=True)
    run = RunDirectory.create(tmp_path / "run", resume=False)
    run.write_images(images_of())
    for model in ("vit", HOSTILE):
        for condition in CONDITIONS:
            labels = images_of().labels[:20]
            some: dict[str, Any] = {"n_expected": IMAGES, "subset": "first 20", "view": VIEW}
            some["manifest_hash"] = images_of().manifest_hash
            run.write_cell(cell_result(f"{model}-{condition}", labels, labels, **some))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_each_format_is_printed_or_written(tree: Path) -> None:
    for form, more in (("timm", ()), ("latex", ()), ("model-index", ("--model", "vit"))):
        printed = export("run", "--format", form, *more)
        assert printed.exit_code == 0, printed.output
        assert "vit" in printed.stdout
        assert "\u202e" not in printed.stdout
        assert printed.stderr == "of 20 of 50 images\n"
        written = export("run", "--format", form, *more, "--out", "new/file")
        assert written.stdout == "written to new/file\n"
        assert (tree / "new" / "file").read_text() == printed.stdout


@pytest.mark.usefixtures("tree")
def test_a_folder_and_a_revision_give_the_same() -> None:
    for form in ("latex", "model-index"):
        outputs = {
            export(place, "--format", form, "--model", "vit").stdout
            for place in ("results/fashion_mnist", "HEAD", "HEAD:results/fashion_mnist")
        }
        assert len(outputs) == 1
        assert "vit" in outputs.pop()


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere", "--format", "timm"), "nowhere is no folder, and no revision either"),
        (("run", "--format", "timm", "--condition", "fog-s3"), "--condition fog-s3: no cell is of it"),
        (("run", "--format", "latex", "--condition", "token_drop-0.50"), "latex has all conditions; leave it out"),
        (("run", "--format", "model-index"), "a model card is of one model"),
        (
            ("run", "--format", "latex", "--model", "vitt"),
            "--model vitt: it is not among the results; did you mean vit",
        ),
        (("HEAD", "--format", "timm"), "is no view, so the image size is not known"),
        (("run", "--format", "html"), "is not one of 'timm', 'model-index', 'latex'"),
    ],
)
def test_what_cannot_be_done_is_said_with_a_remedy(arguments: tuple[str, ...], words: str) -> None:
    result = export(*arguments)
    assert result.exit_code == 2
    assert words in " ".join(re.sub("[│╭╮╰╯─]", " ", result.stderr).split())
    assert "Traceback" not in result.output
    assert result.stdout == ""
