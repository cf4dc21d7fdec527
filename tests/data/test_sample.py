from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.stats import kstest, spearmanr

from simcse_train.data.sample import LineCounts, sample_text


def numbered(folder: Path, lines: int) -> list[str]:
    """Write so many numbered lines; return the names of the files."""
    (folder / "x.txt").write_text("".join(f"line {number}\n" for number in range(lines)))
    return [str(folder / "x.txt")]


def test_every_line_is_as_likely_to_be_drawn_and_the_order_is_random(tmp_path: Path) -> None:
    counts, sample = sample_text(numbered(tmp_path, 4000), None, 400)
    numbers = np.array([int(line.removeprefix("line ")) for line in sample])
    assert counts == LineCounts(4000, 0, 0)
    assert len(set(sample)) == 400
    assert kstest(numbers / 4000, "uniform").pvalue > 0.01
    assert abs(spearmanr(np.arange(400), numbers).statistic) < 0.15  # three standard deviations


def test_a_text_that_fits_is_taken_whole_in_random_order_and_its_lines_are_counted(tmp_path: Path) -> None:
    (file,) = numbered(tmp_path, 300)
    with Path(file).open("a") as stream:
        stream.write("\n  \nline 5\n line 7 \n")
    counts, sample = sample_text([file], None, 1000)
    assert counts == LineCounts(304, 2, 2)
    assert sorted(sample) == sorted(f"line {number}" for number in range(300))
    assert abs(spearmanr(np.arange(300), [int(line[5:]) for line in sample]).statistic) < 0.17
