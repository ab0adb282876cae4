"""What an attempt takes over from the earlier ones of its job: checkpoints, and whether they fit.

resume ──> fingerprint    of everything that decides a bit of the result
   ├─────> calibration    the statistics of each worker, every so often
   ├─────> solved         each group's solution
   └─────> journal        what was measured
checkpoints               how all of these are kept in the bucket, and known to be whole
"""
