"""From token similarities to document scores: MaxSim, XTR's aggregation of hits, imputation."""
