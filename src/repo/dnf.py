# The solver of yum repositories: the host's own, through its Python module. It reads one JSON
# document on stdin and prints one on stdout; it reads metadata files that kiln verified, nothing
# else, and writes only below `cache`. Neither the host's rpm database nor its dnf is opened.
#
# {"cache": DIR, "repositories": [{"id", "priority", "exclude": [GLOB...], "repomd", "primary",
#  "filelists"}], "stages": [[NAME...]...]}
# -> {"packages": [{"name", "version", "arch", "sha256", "size", "path", "repository", "stage"}]}
# -> {"problems": [TEXT...]}: no way to install all of it together
import json
import sys

import hawkey

ARCHES = ["x86_64", "noarch"]


def sack_of(asked):
    sack = hawkey.Sack(cachedir=asked["cache"], arch="x86_64", rootdir=asked["cache"],
                       make_cache_dir=True, logfile=asked["cache"] + "/hawkey.log")
    for given in asked["repositories"]:
        repo = hawkey.Repo(given["id"])
        repo.repomd_fn, repo.primary_fn = given["repomd"], given["primary"]
        repo.filelists_fn = given["filelists"]
        repo.priority = given["priority"]  # yum's: the smaller one wins
        # Without build_cache nothing that an earlier run left is read.
        sack.load_repo(repo, load_filelists=True, build_cache=False)
    return sack


def solve(sack, names):
    """The packages that installing `names` into an empty system takes, and what stands in the way."""
    goal, problems = hawkey.Goal(sack), []
    for name in names:
        # As yum takes it: a package's name, else what one provides.
        selector = None
        for kind in ("name", "provides"):
            if hawkey.Query(sack).filter(**{kind: name}):
                selector = hawkey.Selector(sack).set(**{kind: name})
                break
        if selector is None:
            problems.append(f"no repository carries {name}")
        else:
            goal.install(select=selector)
    if problems:
        return [], problems
    if not goal.run(ignore_weak_deps=True):
        for rules in goal.problem_rules():
            problems.extend(rules)
        return [], problems or ["the solver gives no reason"]
    return goal.list_installs(), []


def told(package, stage):
    kind, digest = package.chksum
    if kind != hawkey.CHKSUM_SHA256:
        sha256 = ""  # the caller says what to do then
    else:
        sha256 = digest.hex()
    return {"name": package.name, "version": f"{package.epoch}:{package.version}-{package.release}",
            "arch": package.arch, "sha256": sha256, "size": package.downloadsize,
            "path": package.location, "repository": package.reponame, "stage": stage}


def main():
    asked = json.load(sys.stdin)
    sack = sack_of(asked)
    sack.add_excludes(hawkey.Query(sack).filter(arch__neq=ARCHES))
    for given in asked["repositories"]:
        for pattern in given["exclude"]:
            sack.add_excludes(hawkey.Query(sack).filter(reponame=given["id"], name__glob=pattern))
    stages = asked["stages"]
    chosen, problems = solve(sack, [name for stage in stages for name in stage])
    if problems:
        return {"problems": problems}
    # Each stage: what its names and those before it need, solved among the chosen ones alone.
    kept = {(p.reponame, p.location) for p in chosen}
    sack.add_excludes([p for p in hawkey.Query(sack) if (p.reponame, p.location) not in kept])
    packages, taken, names = [], set(), []
    for number, stage in enumerate(stages):
        names += stage
        installs, problems = (chosen, []) if number + 1 == len(stages) else solve(sack, names)
        if problems:
            return {"problems": problems}
        for package in installs:
            key = (package.reponame, package.location)
            if key not in taken:
                taken.add(key)
                packages.append(told(package, number))
    return {"packages": packages}


json.dump(main(), sys.stdout)
