const video = document.querySelector("video");
document.addEventListener("click", event => {
  const link = event.target.closest(".seek");
  if (!link || video.error || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  video.currentTime = parseFloat(link.hash.slice(3));
  video.play().catch(() => {});
});
