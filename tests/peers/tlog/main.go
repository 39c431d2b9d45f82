// Checks what a Sealgate log hands out with Go's own packages for transparency logs (golang.org/x/mod/sumdb), which share
// no line with Sealgate. A case is read from standard input as JSON; the exit status is 0 only if everything given holds.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type testCase struct {
	VKey        string            // the log's key, as its trust file has it
	Checkpoint  []byte            // the newest signed checkpoint
	Older       []byte            // an earlier one, with the proof that the log grew out of it
	Consistency [][]byte          //
	Receipts    [][]byte          // C2SP tlog-proofs
	Leaves      [][]byte          // all records, in order
	Tiles       map[string][]byte // by the path below /audit/v1/tile/
}

func main() {
	var given testCase
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		fail("input", err)
	}
	verifier, err := note.NewVerifier(given.VKey)
	if err != nil {
		fail("vkey", err)
	}
	newest, err := openCheckpoint(given.Checkpoint, verifier)
	if err != nil {
		fail("checkpoint", err)
	}
	if err := checkGrowth(given, newest, verifier); err != nil {
		fail("consistency", err)
	}
	for _, receipt := range given.Receipts {
		if err := checkReceipt(receipt, verifier); err != nil {
			fail("receipt", err)
		}
	}
	if err := checkRoot(given.Leaves, newest); err != nil {
		fail("root", err)
	}
	if err := checkTiles(given, newest); err != nil {
		fail("tiles", err)
	}
	fmt.Printf("ok: %d records, %d receipts, %d tiles\n", newest.N, len(given.Receipts), len(given.Tiles))
}

func fail(step string, err error) {
	fmt.Printf("%s: %v\n", step, err)
	os.Exit(1)
}

// openCheckpoint verifies the note and reads its three lines.
func openCheckpoint(text []byte, verifier note.Verifier) (tlog.Tree, error) {
	opened, err := note.Open(text, note.VerifierList(verifier))
	if err != nil {
		return tlog.Tree{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() {
		return tlog.Tree{}, errors.New("not a checkpoint of this log")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, err
	}
	hash, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: hash}, err
}

func checkGrowth(given testCase, newest tlog.Tree, verifier note.Verifier) error {
	if given.Older == nil {
		return nil
	}
	older, err := openCheckpoint(given.Older, verifier)
	if err != nil {
		return err
	}
	proof, err := hashes(given.Consistency)
	if err != nil {
		return err
	}
	return tlog.CheckTree(tlog.TreeProof(proof), newest.N, newest.Hash, older.N, older.Hash)
}

// checkReceipt reads the text of c2sp.org/tlog-proof and verifies it, its extra data taken for the record.
func checkReceipt(receipt []byte, verifier note.Verifier) error {
	head, signed, found := bytes.Cut(receipt, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !found || len(lines) < 3 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return errors.New("not a tlog-proof")
	}
	if !strings.HasPrefix(lines[1], "extra ") || !strings.HasPrefix(lines[2], "index ") {
		return errors.New("no record or no index")
	}
	leaf, err := base64.StdEncoding.DecodeString(lines[1][len("extra "):])
	if err != nil {
		return err
	}
	index, err := strconv.ParseInt(lines[2][len("index "):], 10, 64)
	if err != nil {
		return err
	}
	var proof tlog.RecordProof
	for _, line := range lines[3:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return err
		}
		proof = append(proof, hash)
	}
	tree, err := openCheckpoint(signed, verifier)
	if err != nil {
		return err
	}
	return tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(leaf))
}

// checkRoot builds the whole tree again.
func checkRoot(leaves [][]byte, newest tlog.Tree) error {
	if int64(len(leaves)) != newest.N {
		return fmt.Errorf("%d records for a tree of %d", len(leaves), newest.N)
	}
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var found []tlog.Hash
		for _, index := range indexes {
			found = append(found, stored[index])
		}
		return found, nil
	})
	for index, leaf := range leaves {
		more, err := tlog.StoredHashes(int64(index), leaf, reader)
		if err != nil {
			return err
		}
		stored = append(stored, more...)
	}
	root, err := tlog.TreeHash(newest.N, reader)
	if err != nil {
		return err
	}
	if root != newest.Hash {
		return errors.New("the records do not lead to the root")
	}
	return nil
}

// checkTiles proves every record out of the tiles alone, as a client of a tiled log does.
func checkTiles(given testCase, newest tlog.Tree) error {
	if len(given.Tiles) == 0 {
		return nil
	}
	reader := tlog.TileHashReader(newest, served(given.Tiles))
	for index, leaf := range given.Leaves {
		proof, err := tlog.ProveRecord(newest.N, int64(index), reader)
		if err != nil {
			return err
		}
		if err := tlog.CheckRecord(proof, newest.N, newest.Hash, int64(index), tlog.RecordHash(leaf)); err != nil {
			return err
		}
	}
	return nil
}

// served gives the tiles that were fetched, under the names that C2SP gives them.
type served map[string][]byte

func (tiles served) Height() int                     { return 8 }
func (tiles served) SaveTiles([]tlog.Tile, [][]byte) {}

func (tiles served) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range wanted {
		path := strings.TrimPrefix(tile.Path(), "tile/8/")
		data, there := tiles[path]
		if !there || len(data) != tile.W*tlog.HashSize {
			return nil, fmt.Errorf("no tile %s", path)
		}
		found = append(found, data)
	}
	return found, nil
}

func hashes(given [][]byte) ([]tlog.Hash, error) {
	var found []tlog.Hash
	for _, one := range given {
		if len(one) != tlog.HashSize {
			return nil, errors.New("a hash is not 32 bytes")
		}
		found = append(found, *(*tlog.Hash)(one))
	}
	return found, nil
}
