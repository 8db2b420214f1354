"""For tests of stores and of applications: a conformance suite, and a store that fails on purpose.

`sa_writethrough.testing.conformance` needs pytest and hypothesis, and so is not imported here.
"""

from sa_writethrough.testing.faulty import Call, FaultyStore, Hold, LoseReply, LoseRequest, Moment, Read

__all__ = ["Call", "FaultyStore", "Hold", "LoseReply", "LoseRequest", "Moment", "Read"]
