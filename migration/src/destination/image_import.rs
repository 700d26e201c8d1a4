//! An image that comes from the source.

use std::collections::BTreeMap;

use protocol::message::{ImageRef, Message};
use protocol::wire::Connection;
use state::cause::Cause;
use state::deadline;
use tokio::io::AsyncWriteExt;

use crate::destination::server_context::ServerContext;

/// Bytes that may wait between the connection and the engine.
const BUFFER: usize = 1024 * 1024;

/// The archive did not hold the image that was announced.
#[derive(Debug, thiserror::Error)]
#[error("the archive that came does not hold image {name} with the ID {id}")]
struct WrongImage {
    name: String,
    id: String,
}

/// The archive would have renamed images of this host.
#[derive(Debug, thiserror::Error)]
#[error("the archive that came claims names of other images: {0}")]
struct OtherNames(String);

/// The archive is larger than the peer's permission.
#[derive(Debug, thiserror::Error)]
#[error("the image is larger than the {limit} bytes that are allowed")]
struct TooLarge {
    limit: u64,
}

/// Loads the image that follows, and makes sure that it has the ID that it should have; gives it its name, if
/// that is free. At most `limit` bytes.
pub async fn store(
    host: &ServerContext,
    connection: &mut Connection,
    image: &ImageRef,
    limit: u64,
) -> Result<(), Cause> {
    let (mut writer, mut reader) = tokio::io::duplex(BUFFER);
    let receive = async {
        let mut room = limit;
        loop {
            match connection.receive(deadline::NEXT_MESSAGE).await? {
                Message::ImageData(data) => {
                    let left = room.checked_sub(data.0.len() as u64);
                    room = left.ok_or(TooLarge { limit })?;
                    writer.write_all(&data.0).await?;
                }
                Message::ImageEnd(()) => break,
                other => return Err(connection.unexpected(&other, "ImageData").into()),
            }
        }
        writer.shutdown().await?;
        drop(writer);
        Ok::<_, Cause>(())
    };
    let before = host.engine.image_names().await?;
    let load = async { Ok::<_, Cause>(host.engine.load_image(&mut reader).await?) };
    tokio::try_join!(receive, load)?;
    put_names_back(host, &before).await?;
    if !host.engine.has_image(&image.id).await? {
        return Err(WrongImage { name: image.name.clone(), id: image.id.clone() }.into());
    }
    // A name of this host's keeps its image.
    if host.engine.image_id(&image.name).await?.is_none() {
        host.engine.tag_image(&image.id, &image.name).await?;
    }
    Ok(connection.send(&Message::ImageStored(())).await?)
}

/// Puts names back: an engine gives an image all names that its archive claims, and takes them from others. They are put
/// back, and the archive is refused: an image that was saved by its ID has no names.
async fn put_names_back(
    host: &ServerContext,
    before: &BTreeMap<String, String>,
) -> Result<(), Cause> {
    let after = host.engine.image_names().await?;
    let mut claimed = Vec::new();
    for (name, id) in &after {
        match before.get(name) {
            Some(old) if old == id => continue,
            Some(old) => host.engine.tag_image(old, name).await?,
            None => host.engine.untag_image(id, name).await?,
        }
        claimed.push(name.clone());
    }
    if claimed.is_empty() { Ok(()) } else { Err(OtherNames(claimed.join(", ")).into()) }
}
