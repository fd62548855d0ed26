package layerdisk

import (
	"fmt"
	"strconv"
)

// Names in the file system of a layer disk, relative to its root.
const (
	// OwnDir holds what the disk says about itself.
	OwnDir = "berth"
	// IndexPath is the file with the encoded index.
	IndexPath = OwnDir + "/index.json"
	// ListingsDir holds the stored attribute listings, one file for each layer.
	ListingsDir = OwnDir + "/attrs"
	// LayersDir holds the layers' trees.
	LayersDir = "l"
)

// nameBase keeps directory names short: the mount options of an overlay must fit one page, so every byte of a lower
// directory's path counts. 36 is what strconv offers without upper case.
const nameBase = 36

// LayerDir is the path of a layer's tree, relative to the root of the file system and with slashes: "l/1a" for layer
// number 46. The number must not be negative.
func LayerDir(number int) string {
	return LayersDir + "/" + layerName(number)
}

// ListingPath is the path of a layer's stored attribute listing, relative to the root of the file system:
// "berth/attrs/1a" for layer number 46.
func ListingPath(number int) string {
	return ListingsDir + "/" + layerName(number)
}

// LayerNumber is the inverse of LayerDir for the last element of its path: 46 for "1a". It accepts only the one
// spelling that LayerDir gives.
func LayerNumber(name string) (int, error) {
	n, err := strconv.ParseInt(name, nameBase, 32)
	if err != nil {
		return 0, fmt.Errorf("parse layer directory name %q: %w", name, err)
	}
	if n < 0 || layerName(int(n)) != name {
		return 0, fmt.Errorf("parse layer directory name %q: want digits and lower case letters without leading zeros", name)
	}
	return int(n), nil
}

func layerName(number int) string {
	return strconv.FormatInt(int64(number), nameBase)
}
