"""The speed benchmark: this program beside sentence-transformers and beside what the machine could do.

    pip install -c constraints.txt -e ".[bench]"
    python -m scripts.benchmark --data wikipedia.txt.xz --shape mini

`__main__` has the options and the order of events. `contenders` lists who is compared, `ours` and `peer` train,
`bound` says what the machine could reach, `turns` lets the processes take their steps in turn and times them,
`inputs` makes the common text and weights, `summary` and `plot` turn the times into tables and a picture, and
`machine` describes the machine.
"""
