package matcher

// indexed is one key by which an image or a layer is found, and where.
type indexed struct {
	in  *keyed
	key key
	ok  bool
}

// layerKeys are the ways to a layer, the first known one is used to see whether it is there already.
//
// A layer whose diff ID may be used is found by it whenever the request knows diff IDs, so that a match need not look
// at its other keys; the loose ones are those that it would miss then.
func (x *Index) layerKeys(l *layerRecord) [3]indexed {
	if l.hasDiff {
		return [3]indexed{{&x.byDiff, l.diff, true}, {&x.byChain, l.chain, l.hasChain}, {&x.byBlob, l.blob, l.hasBlob}}
	}
	return [3]indexed{{&x.looseChain, l.chain, l.hasChain}, {&x.looseBlob, l.blob, l.hasBlob}}
}

func (x *Index) addLayer(l *layerRecord, slot uint32) (number uint32, added bool) {
	return put(&x.layers, x.layerKeys(l), l, slot)
}

func (x *Index) removeLayer(number, slot uint32) {
	drop(&x.layers, x.layerKeys(x.layers.at(number)), number, slot)
}

func (x *Index) imageKeys(img *CandidateImage) [3]indexed {
	manifest, hasManifest := digestKey(img.ManifestDigest)
	index, hasIndex := digestKey(img.IndexDigest)
	return [3]indexed{
		{&x.byManifest, manifest, hasManifest}, {&x.byRef, stringKey(img.Reference), img.Reference != ""}, {&x.byIdx, index, hasIndex},
	}
}

func (x *Index) addImage(img *CandidateImage, slot uint32) (number uint32, added bool) {
	return put(&x.images, x.imageKeys(img), img, slot)
}

func (x *Index) removeImage(number, slot uint32) {
	drop(&x.images, x.imageKeys(x.images.at(number)), number, slot)
}

// put makes the candidate in slot a holder of a thing. Nothing is added if it holds it already or if the thing has no
// key.
func put[T comparable](t *table[T], keys [3]indexed, thing *T, slot uint32) (number uint32, added bool) {
	for _, k := range keys {
		if !k.ok {
			continue
		}
		var one [1]uint32
		if known, ok := t.among(k.in.find(k.key, &one), thing); ok {
			return known, t.hold(known, slot)
		}
		number, added = t.add(thing, slot), true
		break
	}
	if !added {
		return 0, false
	}
	for _, k := range keys {
		if k.ok {
			k.in.add(k.key, number)
		}
	}
	return number, true
}

// drop is the reverse of put.
func drop[T comparable](t *table[T], keys [3]indexed, number, slot uint32) {
	if !t.release(number, slot) {
		return
	}
	for _, k := range keys {
		if k.ok {
			k.in.remove(k.key, number)
		}
	}
}
