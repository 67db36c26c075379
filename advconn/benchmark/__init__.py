"""The benchmark: advconn and its baselines on the same images, at one frozen threshold, and the attack that knows it.

data -> protocol.split -> attacks -> every detector's columns -> metrics -> page: each step a plain function.
"""
