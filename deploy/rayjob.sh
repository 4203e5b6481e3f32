#!/bin/sh
# A command as a RayJob runs it. KubeRay tries a job that failed again, on a new cluster, and looks at no
# exit code: one that would be the same again (bad input, too many failed images, findings, a bug) must
# not look like a failure to it, and is told instead. 1, 5 and deaths by signal are resumable: they stay.
cd "$(dirname "$0")/.." || exit 1
python -m jobs.cli "$@"
code=$?
case $code in
2 | 3 | 4 | 70)
  echo "saliency: exit code $code, which another try would end with too: this RayJob is done, and did not succeed"
  exit 0
  ;;
esac
exit $code
