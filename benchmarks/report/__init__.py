"""From records to tables and verdicts. Nothing here trains, and nothing needs torch."""
