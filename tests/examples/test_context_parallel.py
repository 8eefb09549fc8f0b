"""The example of context parallel, on two processes (gloo)."""

import re

from support.ranks import torchrun


def test_the_example_answers_and_says_how_uneven_the_ranks_are():
    done = torchrun(2, "examples/context_parallel.py", "--length", "4400")
    assert done.returncode == 0, done.stderr[-20000:]
    assert re.search(r"model\.layers\.\{0-7\}\.self_attn +context_parallel +8/2 .* sampled", done.stdout)
    kept = [float(x) for x in re.search(r"kept on each rank: ([\d., ]+);", done.stdout)[1].split(", ")]
    imbalance = float(re.search(r"largest / mean: ([\d.]+)", done.stdout)[1])
    assert abs(imbalance - 2 * max(kept) / sum(kept)) < 0.005 and imbalance < 1.05
    answer, expected = re.search(r"Answer: *(.+?) \(expected: *(.+)\)", done.stdout).groups()
    assert answer.strip() == expected.strip()
