"""The checkpoints that an attempt resumes from, and whether they match its computation.

resume ──> fingerprint    the hash of everything that affects the result
   ├─────> calibration    the statistics of each worker, written at intervals
   ├─────> solved         the solution of each group
   └─────> journal        the measurements
checkpoints               the format of all of these in the bucket, with its integrity checks
"""
