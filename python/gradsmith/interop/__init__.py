"""Meeting other tools: checkpoint files, and the formats and arrays of other libraries."""
