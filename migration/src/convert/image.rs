//! Checkpoint images. Names and the order of pieces are checked by the writer, which knows what came before.

use checkpoint::images::{Chunk, FileSum, Manifest};
use checkpoint::shared_memory::Content;
use protocol::message as wire;

use super::{plain_fields, same_fields};

plain_fields! {
    Chunk => wire::Chunk { name, offset, bytes }
    FileSum => wire::FileSum { name, length, hash }
    Content => wire::SharedSegment { segment, pages, is_mapped }
}

same_fields! {
    Manifest => wire::Manifest { files }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::comes_back;

    #[test]
    fn images_come_back() {
        let name = || "pages-1.img".to_owned();
        comes_back(&Chunk { name: name(), offset: 4096, bytes: vec![1; 20].into() });
        let sum = FileSum { name: name(), length: 8192, hash: [8; 16] };
        comes_back(&Content { segment: 70_000, pages: 12, is_mapped: true });
        comes_back(&Manifest { files: vec![sum] });
    }
}
