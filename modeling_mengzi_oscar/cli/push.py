"""`mengzi-oscar push`: check a checkpoint folder and upload it to the Hub."""

from pathlib import Path

from .output import fail, meanwhile, printable, quiet, warnings_as_lines


def add_arguments(parser):
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("repo_id", metavar="REPO_ID")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of a commit")
    parser.add_argument(
        "--assemble",
        action="store_true",
        help="first add to DIR what a Hub repo needs besides the weights: code, auto_map, pipelines, a card if none",
    )
    parser.add_argument("--dry-run", action="store_true", help="check, and list what would be uploaded")


@warnings_as_lines()
def run(options) -> int:
    try:
        with meanwhile("checking …"):
            quiet()
            from .. import hub

            if options.assemble:
                hub.assemble(options.folder)
            if options.dry_run:
                names = hub.check_repo(options.folder)
        if not options.dry_run:
            print(hub.push(options.folder, options.repo_id, options.private, options.create_pr))
            return 0
    except ValueError as error:
        return fail(str(error))
    sizes = {name: (Path(options.folder) / name).stat().st_size for name in names}
    for name, size in sizes.items():
        print(f"{size:14,}  {printable(str(name))}")
    kind = "private " * options.private + "pull request to " * options.create_pr
    print(f"{sum(sizes.values()):14,}  bytes in {len(sizes)} files would go to {kind}{options.repo_id}")
    return 0
