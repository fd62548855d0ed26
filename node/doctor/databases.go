package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"berth.dev/berth/internal/boltfile"
)

// database is one of berthd's, and what to do without it.
type database struct{ file, has, recipe string }

func databases() []database {
	return []database{
		{"metadata.db", "which layers of images are where", "move it away, start berthd, and run berth doctor again: it names the images to be removed and pulled again"},
		{"stage.db", "which disks were attached", "start berthd: it sets it aside, and disks of its configuration and disks that pulls want are attached again; attach others with berth attach"},
		{"imagesnapshots.db", "the image snapshots that berthd keeps", "put back a copy of it, or move it away and start berthd: image snapshots are then to be made again, and their volumes and volume snapshots in the storage are nobody's"},
	}
}

// checkDatabases reads berthd's databases when berthd does not run. While berthd runs, it has them open.
func checkDatabases(n Node) []Result {
	var results []Result
	for _, d := range databases() {
		path := filepath.Join(n.Root, d.file)
		err := boltfile.Check(path)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrPermission):
			results = append(results, Result{"database " + d.file, Warn, err.Error(), "run berth doctor as root"})
		default:
			results = append(results, Result{"database " + d.file, Fail, fmt.Sprintf("%s, which says %s, is damaged: %v", path, d.has, err), d.recipe})
		}
	}
	return results
}

// checkSetAside looks for databases that berthd found damaged and replaced.
func checkSetAside(n Node) []Result {
	var results []Result
	for _, d := range databases() {
		found, err := filepath.Glob(filepath.Join(n.Root, d.file+".damaged-*"))
		if err != nil || len(found) == 0 {
			continue
		}
		results = append(results, Result{"database " + d.file, Warn,
			fmt.Sprintf("berthd found it damaged and began a new one; the damaged one, which said %s, is %s", d.has, list(found)),
			"see that \"berth status\" shows all disks, attach those that are missing with berth attach, and remove the file"})
	}
	return results
}
