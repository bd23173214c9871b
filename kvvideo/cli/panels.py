"""Names of the groups that the help shows options in, in their order."""

ASK, VIDEO, MODEL, CACHE, OUTPUT = "What to ask", "What to read", "Model", "Memory", "Output"
PLAY, MEASURE, BATCH, RAY, SERVER = "Playing", "What to measure", "Several at once", "Ray", "Server"
EXPERT, EVERYWHERE = "Expert", "Every command"

PANELS = (ASK, MEASURE, VIDEO, PLAY, MODEL, CACHE, BATCH, OUTPUT, RAY, SERVER, EXPERT, EVERYWHERE)
"""All of them. An option of none of them has no place in the help, which a test finds."""
