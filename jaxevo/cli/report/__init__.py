"""`jaxevo report`: a run or a study as one HTML page that needs nothing but a browser."""
