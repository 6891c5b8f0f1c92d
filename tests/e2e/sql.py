"""Runs SQL statements under spark-submit, with the session of the jobs, and prints the last one's rows, a JSON each.

./spark-submit.sh [SPARK OPTIONS] tests/e2e/sql.py S3_ENDPOINT STATEMENT...
"""

import sys

from jobs.common.session import build_session

if __name__ == "__main__":
    endpoint, *statements = sys.argv[1:]
    spark = build_session("sql", endpoint)
    for statement in statements:
        rows = spark.sql(statement)
    print(*rows.toJSON().collect(), sep="\n")
