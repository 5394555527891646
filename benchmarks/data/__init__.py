"""Data sets as their cards describe them: their files, how those pair, the order of samples."""
