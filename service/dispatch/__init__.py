"""From the queue to the cluster, attempts seen to their end, and what ended jobs leave behind."""
