"""Statistics of scores: paired tests, intervals, agreement of raters. Knows no files and no models."""
