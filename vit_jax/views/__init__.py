"""Pages and pictures for people: of a run, of what a model looks at, of a model that is shared."""
