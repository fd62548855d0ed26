// Command berth makes, inspects and verifies layer disks, and talks to berthd on a node.
package main

import (
	"os"

	"berth.dev/berth/internal/program"
)

func main() { os.Exit(program.Main(newRoot())) }
