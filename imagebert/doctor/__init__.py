"""Is this job fit to train? Each rank looks at its host, all tell each other, and differences become sentences.

Asked at the start of every job (slurm/common.sh), so that a wrong machine is named in seconds instead of being found by
a hang: other versions on one node, fewer GPUs than processes, data that one node does not see, a run's folder that is
another one there, a slow GPU or link, clocks that disagree. What is wrong everywhere is the call's, what is wrong on
some hosts is theirs; so is what a later attempt misses and an earlier one had.

examine.py is the conversation; look.py what one rank finds; folder.py and speed.py what takes several; compare.py and
record.py judge, and ask nothing of any machine.
"""
