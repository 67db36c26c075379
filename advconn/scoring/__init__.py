"""Images judged a batch at a time: records, files of results, pages and the journal of a run.

It imports detector and data, and knows neither commands nor servers.
"""
