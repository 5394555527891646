"""What a run would take and what it lacks, found out without data, weights or records."""
