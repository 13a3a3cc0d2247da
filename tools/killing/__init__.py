"""The parts of tools/kill.py: what is run, and how what it leaves is judged."""
