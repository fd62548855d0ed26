package stage

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/internal/boltfile"
	"berth.dev/berth/layerdisk"
)

// goal is where a disk should be in the end.
type goal string

const (
	goalStaged goal = "staged"
	goalGone   goal = "gone"
)

// record is what the journal knows of one disk: everything needed to go on from any point, in either direction.
type record struct {
	Spec Spec `json:"spec"`
	Goal goal `json:"goal"`
	// Step was begun last. It is for people: what is done next follows from Goal and from what is found.
	Step  State     `json:"step"`
	Since time.Time `json:"since"`
	// Number of the directory to mount on.
	Number int `json:"number"`
	// VolumeName of the volume to be made of Spec.VolumeSnapshotID; unique, so that a volume of this name is ours.
	VolumeName string `json:"volumeName,omitempty"`
	VolumeID   string `json:"volumeID,omitempty"`
	// Asked is when the storage was asked for the volume of VolumeName; zero if it has made none. With no VolumeID, it
	// is not known whether it has.
	Asked time.Time `json:"asked,omitzero"`
	// AttachBegun says that an attachment of the volume is ours to give up.
	AttachBegun bool `json:"attachBegun,omitempty"`
	// Device and DeviceNumber are those that were proved to hold the disk; the number says which mounts are ours, as
	// long as the boot is the same.
	Device       string             `json:"device,omitempty"`
	DeviceNumber uint64             `json:"deviceNumber,omitempty"`
	BootID       string             `json:"bootID,omitempty"`
	Identity     layerdisk.Identity `json:"identity,omitzero"`
	Draining     bool               `json:"draining,omitempty"`
}

// target is the directory to mount on. Its name is short because overlay's options must fit one page.
func (r record) target(root string) string {
	return filepath.Join(root, strconv.FormatInt(int64(r.Number), 36))
}

// mounted says whether a mount is one that we made.
func (r record) mounted(m fsmount.Mounted, bootID string) bool {
	return r.DeviceNumber != 0 && r.DeviceNumber == m.Device && r.BootID == bootID
}

const (
	journalVersion = "1"
	// lockWait is how long to wait for another process to close the journal: a predecessor that is just ending.
	lockWait = 2 * time.Second
)

// journal is a bbolt database of one record for each disk. Every write is on the disk when it returns.
type journal struct {
	db *bolt.DB
	// aside is where the damaged journal is that was found instead, empty if none was.
	aside string
}

func metaBucket() []byte  { return []byte("meta") }
func disksBucket() []byte { return []byte("disks") }
func versionKey() []byte  { return []byte("version") }

// setDamagedAside renames a journal that cannot be used, and returns its new path.
func setDamagedAside(path string) (string, error) {
	err := boltfile.Check(path)
	if !errdefs.IsDataLoss(err) {
		return "", err
	}
	aside, asideErr := boltfile.SetAside(path, time.Now())
	if asideErr != nil {
		return "", errors.Join(err, asideErr)
	}
	return aside, nil
}

func openJournal(path string) (*journal, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open journal %s: another process has it open, stop that one first: %w", path, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		meta, err := tx.CreateBucketIfNotExists(metaBucket())
		if err != nil {
			return err
		}
		if v := meta.Get(versionKey()); v != nil && string(v) != journalVersion {
			return fmt.Errorf("it has version %s, this program knows %s: use the program that wrote it, or unstage all disks with that first: %w",
				v, journalVersion, errdefs.ErrNotImplemented)
		}
		if err := meta.Put(versionKey(), []byte(journalVersion)); err != nil {
			return err
		}
		_, err = tx.CreateBucketIfNotExists(disksBucket())
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open journal %s: %w", path, err), db.Close())
	}
	return &journal{db: db}, nil
}

func (j *journal) close() error {
	if err := j.db.Close(); err != nil {
		return fmt.Errorf("close journal: %w", err)
	}
	return nil
}

// load reads all records. One that cannot be read is in bad and stays where it is.
func (j *journal) load() (records []record, bad []error, err error) {
	err = j.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(disksBucket()).ForEach(func(name, data []byte) error {
			var rec record
			if err := json.Unmarshal(data, &rec); err != nil {
				bad = append(bad, fmt.Errorf("disk %q: %w", name, err))
				return nil
			}
			if rec.Spec.Name != string(name) || rec.Number < 0 || rec.Goal != goalStaged && rec.Goal != goalGone {
				bad = append(bad, fmt.Errorf("disk %q: entry contradicts itself: %w", name, errdefs.ErrDataLoss))
				return nil
			}
			records = append(records, rec)
			return nil
		})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read journal: %w", err)
	}
	return records, bad, nil
}

func (j *journal) put(rec record) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	err = j.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(disksBucket()).Put([]byte(rec.Spec.Name), data)
	})
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

func (j *journal) remove(name string) error {
	err := j.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(disksBucket()).Delete([]byte(name)) })
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}
