"""The command line: `chogori VERB …`, one module per verb, loaded when it is asked for.

Owns what is typed and what is shown; never decides how anything is trained or sampled. Read `main`, then `train`.
Loads no torch until a verb needs it.
"""
