"""Finding what is wrong: census, passes, findings, problem catalogue."""
