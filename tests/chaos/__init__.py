"""The rig: real processes, real servers, every fault at once, and a checker of every single read.

python -m tests.chaos --minutes 60 --json long.json      what is promised, under fire
python -m tests.chaos compare                            the same beside what people use today
python -m tests.chaos report long.json other.json        several runs as one
"""
