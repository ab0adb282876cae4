"""The checkpoints that an attempt resumes from, and whether they match its computation.

resume ──> fingerprint    of everything that decides a bit of the result
   ├─────> calibration    the statistics of each worker, every so often
   ├─────> solved         each group's solution
   └─────> journal        what was measured
checkpoints               how all of these are kept in the bucket, and known to be whole
"""
