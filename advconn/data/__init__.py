"""Files and arrays to images: pictures, containers, collections, labels, benign conditions, and data sets.

It imports the ground alone, and knows neither networks nor detectors.
"""
