"""What was answered, written and read: sample logs, results with their figures and errors, and runs beside each other.

This room knows neither models nor how answers were made, so that results of any origin can be read with it.
"""
