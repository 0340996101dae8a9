"""Scheduled work: the schedule, the runner that holds the lease, and the jobs themselves."""
