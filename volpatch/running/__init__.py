"""One run, from its first look at the target to the published output.

    lifecycle   begin, go on, publish      scheduler   which region next
    worker      computes one region        executors/  threads and processes
    repair      what failed or went bad    status      how far it is, whether it is sound

May import everything but the command. Named by what it does, since `volpatch.run` is the function.
"""
