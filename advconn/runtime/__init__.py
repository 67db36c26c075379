"""How networks are run and work is spread: forward passes, processes and clusters, finished work kept, progress.

It imports errors alone, and knows neither images nor detectors.
"""
