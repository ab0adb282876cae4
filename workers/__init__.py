"""What runs on Ray: the driver of an attempt, its pinned workers, assembly and evaluation."""
