package matcher

// content is what candidates hold. Images and layers are kept once each, however many candidates have them, and found
// by their digests.
type content struct {
	layers                   table[layerRecord]
	byChain, byDiff, byBlob  keyed // layers whose diff ID may be used
	looseChain, looseBlob    keyed // the other layers
	images                   table[CandidateImage]
	byRef, byManifest, byIdx keyed // images
}

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
func (c *content) layerKeys(l *layerRecord) [3]indexed {
	if l.hasDiff {
		return [3]indexed{{&c.byDiff, l.diff, true}, {&c.byChain, l.chain, l.hasChain}, {&c.byBlob, l.blob, l.hasBlob}}
	}
	return [3]indexed{{&c.looseChain, l.chain, l.hasChain}, {&c.looseBlob, l.blob, l.hasBlob}}
}

func (c *content) addLayer(l *layerRecord, slot uint32) (number uint32, added bool) {
	return put(&c.layers, c.layerKeys(l), l, slot)
}

func (c *content) removeLayer(number, slot uint32) {
	drop(&c.layers, c.layerKeys(c.layers.at(number)), number, slot)
}

func (c *content) imageKeys(img *CandidateImage) [3]indexed {
	manifest, hasManifest := digestKey(img.ManifestDigest)
	index, hasIndex := digestKey(img.IndexDigest)
	return [3]indexed{
		{&c.byManifest, manifest, hasManifest}, {&c.byRef, stringKey(img.Reference), img.Reference != ""}, {&c.byIdx, index, hasIndex},
	}
}

func (c *content) addImage(img *CandidateImage, slot uint32) (number uint32, added bool) {
	return put(&c.images, c.imageKeys(img), img, slot)
}

func (c *content) removeImage(number, slot uint32) {
	drop(&c.images, c.imageKeys(c.images.at(number)), number, slot)
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
