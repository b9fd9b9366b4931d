"""Orders of papers held against runs: the t-test, the rows' names, the table."""

from pathlib import Path

import pytest

from atrousops.common.checks import ArgumentError
from atrousops.engine import config, orders

FOLDERS = sorted(file.parent for file in Path(orders.__file__).parents[1].glob(f"configs/*/{orders.FILE}"))


def run(seed, miou, **rest):
    return {"recipe": {"seed": seed}, "summary": {"miou": miou}, **rest}


@pytest.mark.parametrize(
    ("paper", "here", "expected"),
    [
        # Mean 2, deviation 1, so 1.69 either way for three seeds.
        (1.5, [1.0, 2.0, 3.0], "seen"),
        (-1.5, [1.0, 2.0, 3.0], "the other way round"),
        (-0.1, [-1.0, -2.0, -3.0], "seen"),
        # Deviation 2, so 3.37.
        (1.5, [0.0, 2.0, 4.0], "cannot be told"),
        # Two seeds: mean 2, deviation 0.42, so 1.9; deviation 0.57, so 2.5.
        (1.5, [1.7, 2.3], "seen"),
        (1.5, [1.6, 2.4], "cannot be told"),
        (1.5, [9.0], "cannot be told: one seed"),
        (0.0, [1.0, 2.0, 3.0], "the paper has none"),
    ],
)
def test_a_verdict(paper, here, expected):
    assert orders.verdict(paper, here) == expected


def test_scores_of_a_row_by_seed():
    runs = [
        ("f/a", run(0, 0.5, variants={"wide": {"miou": 0.25}}, tuned_crf={"miou": 0.75})),
        ("f/a.seed1", run(1, 0.375)),
        ("f/ab", run(0, 0.125)),
    ]
    assert orders.scores(runs, "f/a") == {0: 50.0, 1: 37.5}
    assert orders.scores(runs, "f/a, wide") == {0: 25.0}
    assert orders.scores(runs, "f/a, tuned CRF") == {0: 75.0}
    assert orders.scores(runs, "f/c") == {}
    # Seeds that both have.
    assert orders.differences({0: 1.0, 1: 5.0}, {1: 6.5, 2: 9.0}) == [1.5]


def test_a_table():
    order = orders.Order("A title", "A paper", {"f/a": 60.0, "f/one": 61.0, "f/b": 61.5, "f/c": None})
    scores = {"f/a": (0.25, 0.5), "f/one": (0.5,), "f/b": (0.5, 0.75), "f/c": (0.5, 0.5)}
    found = [(name, seed, miou) for name, mious in scores.items() for seed, miou in enumerate(mious)]
    runs = [(f"{name}.seed{seed}", run(seed, miou)) for name, seed, miou in found]
    rows = [line for line in orders.section(order, runs) if line.startswith("| f/")]
    assert rows == [
        "| f/a | 60.0 | 37.5 ± 17.7 |  |  |  |",
        "| f/b | 61.5 | 62.5 ± 17.7 | +1.5 | +25.0 ± 0.0 | seen |",
        "| f/c |  | 50.0 ± 0.0 |  |  |  |",
    ]
    # One row says nothing of an order.
    assert list(orders.section(order, runs[:2])) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_rows_are_of_recipes(folder):
    for order in orders.read(folder):
        for row in order.rows:
            name, _, way = row.partition(", ")
            recipe = config.load(folder.parent / f"{name}.yaml")
            assert recipe.crf if way == orders.TUNED_CRF else not way or way in recipe.variants, row


def test_orders_beside_a_studys_recipes(tmp_path):
    (tmp_path / orders.FILE).write_text("- {title: Mine, source: A paper, rows: {f/a: 1.0, f/b: 2.0}}")
    assert [order.title for order in orders.read(tmp_path)] == ["Mine"]
    (tmp_path / orders.FILE).write_text("- {title: Mine, rows: {f/a: 1.0}}")
    with pytest.raises(ArgumentError, match=r"title, source and rows.*\n?.*source"):
        orders.read(tmp_path)
