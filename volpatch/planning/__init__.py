"""From words to a plan: regions, memory, what makes two runs the same job.

    build (words -> plan)  ->  fit (regions within the memory limit)  ->  plan, job, identity

May import core, compute, storage and functions. Named by what it does, since `volpatch.plan` is
the function.
"""
