"""Load generation: who sends when (pacer), what (workload), the sending (runner), and what came of it."""
