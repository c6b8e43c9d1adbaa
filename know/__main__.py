from know.cli import main

main()
