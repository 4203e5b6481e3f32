"""Which classes rest on something they should not: cues, interventions on the model, verdicts."""
