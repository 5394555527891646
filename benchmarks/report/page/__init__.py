"""The report: one HTML file over all tables of a profile; the same charts as files for a paper."""
